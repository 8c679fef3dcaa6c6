-- The pauses of a namespace that are in force, by handler; the whole namespace's, whose handler is '', comes first.
-- $1 at timestamptz, $2 namespace_id int, $3 after text (null: from the beginning), $4 limit int
select handler, reason, coalesce(actor, ''), since, until
from pause
where namespace_id = $2 and ended_at is null and (until is null or until > coalesce($1, now())) and ($3::text is null or handler > $3)
order by handler
limit $4
