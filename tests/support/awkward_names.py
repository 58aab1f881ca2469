"""Names that a file system allows and that shells, URLs, terminals and encodings trip over."""

NAMES = [
    *("sp ace", "-dash", "--help", "$HOME", "it's", 'say "so"', "new\nline", "tab\t", "a\\b"),
    *("[bold]", "é", "a?b", "a%20b", "a#b", "a;b&c|d", "~", "*", "a:b@c", " lead", "esc\x1b[2J"),
    *("\N{LINE SEPARATOR}", "'\x01'", "\udcff", "run\udce9", "x" * 200),
]
NOT_UTF8 = ["\udcff", "run\udce9"]
