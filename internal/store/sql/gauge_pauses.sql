-- The pauses that are in force, for metrics: of a handler, or of a whole namespace, whose handler is empty.
-- $1 at timestamptz
select namespace.name as namespace, pause.handler, greatest(coalesce($1, now()) - pause.since, interval '0') as age
from pause
join namespace using (namespace_id)
where pause.ended_at is null and (pause.until is null or pause.until > coalesce($1, now()))
order by namespace.name, pause.handler
