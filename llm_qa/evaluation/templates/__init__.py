"""The report's page and its Markdown twin: templates, the texts they show, and how text gets into them safely."""
