-- Templates by name, each name's versions from the newest to the oldest, after ($2, $3).
-- $1 namespace_id int, $2 after_name text, $3 after_order text[] (null: from the beginning), $4 limit int, $5 name text (null: any),
-- $6 latest_only boolean
select template.name, template.version, template.version_order, template.prerelease, template.body, template.digest,
  template.created_at, template.created_by
from template
where namespace_id = $1
  and ($5::text is null or template.name = $5)
  and (template.name collate "C" > $2 collate "C"
    or template.name = $2 and ($3::text[] is null or template.version_order < $3::text[] collate "C"))
  and (not $6 or template.version = (
    select latest.version from template latest
    where latest.namespace_id = $1 and latest.name = template.name
    order by latest.prerelease, latest.version_order desc
    limit 1))
order by template.name collate "C", template.version_order desc
limit $4
