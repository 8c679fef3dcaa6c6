-- $1 lane_id int
select lane_id, namespace_id, handler, circuit, priority, coalesce(circuit_id, 0) from lane where lane_id = $1
