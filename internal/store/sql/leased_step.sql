-- Whether a lease is held under this token. $1 task_id bigint, $2 step_no int, $3 token uuid
select exists (select from lease where task_id = $1 and step_no = $2 and token = $3)
