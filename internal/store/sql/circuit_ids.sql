-- The circuits of a namespace, in the lock order. $1 namespace_id int
select circuit_id from circuit where namespace_id = $1 order by circuit_id
