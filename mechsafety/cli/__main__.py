from mechsafety.cli import main

main()
