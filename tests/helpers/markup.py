"""Names that markup languages would read as something else."""

MARKUP = (
    *("[/]", "[bold]", "[bold red]x[/bold red]", "a[/]b", "[/nothing]", "[link=file:///etc]x[/link]", "road [front]"),
    *("[[x]]", "\\[x]", "x\\", ":smile:", "[@click=exit]x[/]", "[", "]", "[]"),
    *("<b>x</b>", "</script><script>x</script>", '"><img src=x onerror=y>', "'x", "&lt;", "&amp;amp;", "<!--note-->"),
)
