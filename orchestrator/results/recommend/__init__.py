"""recommend: which teachers would help one student, from what a study has measured so far.

database and cached predictions -> what each teacher knows -> forecast of the change -> one ranked list
"""
