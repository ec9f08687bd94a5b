-- Hours of work by job kind and device, and how many of them gave no result
-- parameters: study
SELECT st.name AS study, j.kind, w.device, COUNT(*) AS attempts, COUNT(DISTINCT a.job_id) AS jobs,
       SUM(a.ended_at - a.started_at) / 3600.0 AS hours,
       SUM(CASE WHEN a.outcome = 'done' THEN 0.0 ELSE a.ended_at - a.started_at END) / 3600.0 AS hours_without_result
FROM attempts a
JOIN jobs j ON j.id = a.job_id
JOIN study_jobs sj ON sj.job_id = j.id
JOIN studies st ON st.id = sj.study_id
LEFT JOIN workers w ON w.id = a.worker
WHERE a.ended_at IS NOT NULL
  AND (CAST(:study AS TEXT) IS NULL OR st.name = CAST(:study AS TEXT))
GROUP BY st.name, j.kind, w.device
ORDER BY st.name, hours DESC, j.kind
