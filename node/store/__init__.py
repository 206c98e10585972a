"""The only SQL, files and ciphers of the node.

Bodies are ciphertext, indexes are blind: whatever names a patient is sealed
with her key (`keys`, `blobs`), and the columns used for search either identify
nobody or are keyed hashes. Everything that changes state does so inside a
transaction that the caller opened (`database`).
"""
