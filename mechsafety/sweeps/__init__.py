"""Layer sweeps: candidates, their scores by position and layer, selection, profiles and doses."""
