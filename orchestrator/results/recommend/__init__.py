"""recommend: ranks teachers for one student by the measurements of a study.

database and cached predictions -> flips of each teacher -> forecast of the change -> ranking
"""
