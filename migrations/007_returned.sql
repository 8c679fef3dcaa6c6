-- Steps that came back from a dispatch keep their place, which may lie far behind those that are claimed by now. A look for
-- them finds them here: the primary key would lead it through every dead row in between (probe_lanes.sql).
create index ready_returned on ready (lane_id, seq) where last_token is not null;

---- create above / drop below ----

drop index ready_returned;
