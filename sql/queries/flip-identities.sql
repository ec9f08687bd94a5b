-- Largest violation of the identities that every row must satisfy, in points; more than rounding is an error
-- parameters: study
SELECT st.name AS study, 'rho_pos - rho_neg = delta_acc' AS identity, COUNT(*) AS checked,
       MAX(ABS(c.rho_pos - c.rho_neg - c.delta_acc)) AS worst
FROM complementarity c
JOIN study_jobs sj ON sj.job_id = c.job_id
JOIN studies st ON st.id = sj.study_id
WHERE CAST(:study AS TEXT) IS NULL OR st.name = CAST(:study AS TEXT)
GROUP BY st.name
UNION ALL
SELECT st.name, 'knowledge_gain - knowledge_loss = delta_transf', COUNT(*),
       MAX(ABS(t.knowledge_gain - t.knowledge_loss - t.delta_transf))
FROM transfers t
JOIN study_jobs sj ON sj.job_id = t.job_id
JOIN studies st ON st.id = sj.study_id
WHERE CAST(:study AS TEXT) IS NULL OR st.name = CAST(:study AS TEXT)
GROUP BY st.name
UNION ALL
SELECT st.name, 'change of rho_neg - change of rho_pos = delta_transf', COUNT(*),
       MAX(ABS((t.rho_neg_after - t.rho_neg_before) - (t.rho_pos_after - t.rho_pos_before) - t.delta_transf))
FROM transfers t
JOIN study_jobs sj ON sj.job_id = t.job_id
JOIN studies st ON st.id = sj.study_id
WHERE CAST(:study AS TEXT) IS NULL OR st.name = CAST(:study AS TEXT)
GROUP BY st.name
ORDER BY study, identity
