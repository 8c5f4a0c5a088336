"""Texts in CSV files, which people open in spreadsheets."""

import unicodedata

__all__ = ["csv_text"]

FORMULA_STARTS = "=+-@\N{MINUS SIGN}"  # and their other forms, such as full-width ones


def csv_text(text: str) -> str:
    """A text for a cell of a CSV file, with an apostrophe first if a spreadsheet could run it as a formula.

    Spreadsheets skip spaces, and characters that show nothing, at the beginning of a cell.
    """
    visible = next((letter for letter in text if unicodedata.category(letter)[0] not in "ZC"), " ")
    runs = unicodedata.normalize("NFKC", visible)[0] in FORMULA_STARTS or text.startswith(("\t", "\r", "\n"))
    return f"'{text}" if runs else text
