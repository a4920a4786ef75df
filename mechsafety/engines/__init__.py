"""Where the tasks of a run are worked on: what a task is, which one is next, and workers on ray."""
