-- Failed attempts grouped by cause, the most frequent first
-- parameters: study
SELECT st.name AS study, a.error_group, j.kind, MIN(a.error) AS error, MIN(a.message) AS message, COUNT(*) AS attempts,
       COUNT(DISTINCT a.job_id) AS jobs,
       COUNT(DISTINCT CASE WHEN j.state = 'failed' THEN j.id END) AS jobs_given_up,
       COUNT(DISTINCT w.host) AS hosts, MIN(j.id) AS a_job
FROM attempts a
JOIN jobs j ON j.id = a.job_id
JOIN study_jobs sj ON sj.job_id = j.id
JOIN studies st ON st.id = sj.study_id
LEFT JOIN workers w ON w.id = a.worker
WHERE a.error_group IS NOT NULL
  AND (CAST(:study AS TEXT) IS NULL OR st.name = CAST(:study AS TEXT))
GROUP BY st.name, a.error_group, j.kind
ORDER BY st.name, attempts DESC, a.error_group, j.kind
