-- How many leases each session may hold.
select session_id, max_in_flight from worker_session
