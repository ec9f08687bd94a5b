-- runs: every transfer of the study, with the number of its setting among those of its data set and objective
runs AS (
    SELECT st.name AS study, t.*,
           DENSE_RANK() OVER (
               PARTITION BY st.name, t.dataset, t.objective
               ORDER BY t.reading DESC, t.batchnorm DESC, t.epochs, t.lr, t.temperature, t.top_k, {settings}
           ) AS setting
    FROM transfers t
    JOIN study_jobs sj ON sj.job_id = t.job_id
    JOIN studies st ON st.id = sj.study_id
    WHERE t.delta_transf IS NOT NULL
      AND (CAST(:study AS TEXT) IS NULL OR st.name = CAST(:study AS TEXT))
)
