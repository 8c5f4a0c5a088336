"""Matching and loss, in the field's order: targets, points, matching costs, mask losses, and their weighted sum.

`reference.py` says what is computed. Axis letters are those of docs/specification.md, and: L1 = L + 1 predictions;
K1 = K + 1 classes, "no object" last; N matched pairs; P points; h, w the size of mask logits, H/4 and W/4.
"""
