"""What a model knows: numbers of metrics, labelled data sets and prompts, suites that measure them, and their page."""
