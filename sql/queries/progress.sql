-- Jobs by kind and state
-- parameters: study
SELECT st.name AS study, j.kind, j.state, COUNT(*) AS jobs, SUM(j.estimate_s) / 3600.0 AS estimated_hours
FROM jobs j
JOIN study_jobs sj ON sj.job_id = j.id
JOIN studies st ON st.id = sj.study_id
WHERE CAST(:study AS TEXT) IS NULL OR st.name = CAST(:study AS TEXT)
GROUP BY st.name, j.kind, j.state
ORDER BY st.name, j.kind, j.state
