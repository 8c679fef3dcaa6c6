-- Stores a version of a template. No row: that version stands already.
-- $1 namespace_id int, $2 name text, $3 version text, $4 version_order text[], $5 prerelease boolean, $6 body bytea,
-- $7 digest bytea, $8 created_by text, $9 at timestamptz
insert into template (namespace_id, name, version, version_order, prerelease, body, digest, created_by, created_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, coalesce($9, now()))
on conflict (namespace_id, name, version) do nothing
returning created_at
