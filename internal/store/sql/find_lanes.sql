-- The lanes of handlers, of a namespace. $1 namespace_id int, $2 handler text[] (null: all)
select lane_id, namespace_id, handler, circuit, priority
from lane
where namespace_id = $1 and ($2::text[] is null or handler = any ($2))
