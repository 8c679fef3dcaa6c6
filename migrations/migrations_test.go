package migrations_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/migrations"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// files is a migration set in the making: name, body, name, body, …
func files(pairs ...string) fstest.MapFS {
	set := fstest.MapFS{}
	for i := 0; i < len(pairs); i += 2 {
		set[pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1])}
	}
	return set
}

var threeFiles = []string{
	"001_crate.sql", "create table crate (id int);",
	"002_label.sql", "alter table crate add label text;",
	"code/010_label_of.sql", "create or replace function label_of(int) returns text language sql stable as $$ select label from crate where id = $1 $$;",
}

// value reads one value as text, "<null>" for null.
func value(t *testing.T, conn *pgx.Conn, sql string, args ...any) string {
	t.Helper()
	var got *string
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&got); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	if got == nil {
		return "<null>"
	}
	return *got
}

func mustUp(t *testing.T, conn *pgx.Conn, set fstest.MapFS) {
	t.Helper()
	if err := migrations.UpFiles(t.Context(), conn, set); err != nil {
		t.Fatal(err)
	}
}

func mustStatus(t *testing.T, conn *pgx.Conn, set fstest.MapFS) migrations.State {
	t.Helper()
	state, err := migrations.StatusFiles(t.Context(), conn, set)
	if err != nil {
		t.Fatal(err)
	}
	return state
}

func TestTheSchemaInstallsAndItsCodeRepeats(t *testing.T) {
	t.Parallel()
	conn := pgtest.NewEmpty(t).Conn(t)
	for range 2 {
		if err := migrations.Up(t.Context(), conn); err != nil {
			t.Fatal(err)
		}
		state, err := migrations.Status(t.Context(), conn)
		if err != nil || !state.Ready() || state.Current != state.Latest || state.Latest == 0 {
			t.Fatalf("state %+v, error %v", state, err)
		}
		// Forgetting the digest makes the next round install the code package once more.
		if _, err := conn.Exec(t.Context(), "delete from schema_code"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTheSchemaFitsInAnySchema(t *testing.T) {
	t.Parallel()
	db := pgtest.NewEmpty(t)
	conn := db.Conn(t)
	for _, shard := range []string{"shard_one", "shard_two"} {
		if _, err := conn.Exec(t.Context(), fmt.Sprintf("create schema %s; set search_path = %[1]s", shard)); err != nil {
			t.Fatal(err)
		}
		if err := migrations.Up(t.Context(), conn); err != nil {
			t.Fatalf("%s: %v", shard, err)
		}
		if got := value(t, conn, "show search_path"); got != shard {
			t.Errorf("search_path is %s afterwards, want %s", got, shard)
		}
		if got := value(t, conn, "select current_schema() || '.' || version from schema_version where to_regclass($1) is not null", shard+".schema_version"); !strings.HasPrefix(got, shard+".") {
			t.Errorf("schema_version of %s reads %s", shard, got)
		}
	}
	strays := value(t, conn, `
		select string_agg(relname, ', ') from pg_class join pg_namespace on pg_namespace.oid = relnamespace where nspname = 'public'`)
	if strays != "<null>" {
		t.Errorf("public got %s", strays)
	}
}

func TestStatusTellsWhatIsPendingAndChangesNothing(t *testing.T) {
	t.Parallel()
	conn := pgtest.NewEmpty(t).Conn(t)
	set := files(threeFiles...)
	want := migrations.State{Current: 0, Latest: 2, Pending: []string{"001_crate.sql", "002_label.sql", "code/"}}
	if diff := cmp.Diff(want, mustStatus(t, conn, set)); diff != "" {
		t.Errorf("empty database: %s", diff)
	}
	if got := value(t, conn, "select to_regclass('schema_version')::text"); got != "<null>" {
		t.Errorf("looking made %s", got)
	}

	mustUp(t, conn, files(threeFiles[:2]...))
	want = migrations.State{Current: 1, Latest: 2, Pending: []string{"002_label.sql", "code/"}}
	if diff := cmp.Diff(want, mustStatus(t, conn, set)); diff != "" {
		t.Errorf("half way: %s", diff)
	}

	mustUp(t, conn, set)
	want = migrations.State{Current: 2, Latest: 2, Pending: []string{}}
	state := mustStatus(t, conn, set)
	if diff := cmp.Diff(want, state); diff != "" {
		t.Errorf("all done: %s", diff)
	}
	if !state.Ready() || state.Newer() {
		t.Errorf("all done, yet ready = %t, newer = %t", state.Ready(), state.Newer())
	}
}

func TestCodeIsInstalledWhenItDiffersAndOnlyThen(t *testing.T) {
	t.Parallel()
	conn := pgtest.NewEmpty(t).Conn(t)
	mustUp(t, conn, files(threeFiles...))
	first := value(t, conn, "select installed_at::text from schema_code")
	mustUp(t, conn, files(threeFiles...))
	if again := value(t, conn, "select installed_at::text from schema_code"); again != first {
		t.Errorf("the same code was installed again at %s, after %s", again, first)
	}

	changed := files(threeFiles...)
	changed["code/010_label_of.sql"] = &fstest.MapFile{Data: []byte(
		"create or replace function label_of(int) returns text language sql immutable as $$ select 'changed' $$;")}
	if diff := cmp.Diff([]string{"code/"}, mustStatus(t, conn, changed).Pending); diff != "" {
		t.Error(diff)
	}
	mustUp(t, conn, changed)
	if got := value(t, conn, "select label_of(1)"); got != "changed" {
		t.Errorf("label_of(1) = %s after its code changed", got)
	}
	if got := value(t, conn, "select count(*)::text from schema_code"); got != "1" {
		t.Errorf("schema_code has %s rows", got)
	}
}

func TestANewerDatabaseIsLeftAlone(t *testing.T) {
	t.Parallel()
	conn := pgtest.NewEmpty(t).Conn(t)
	mustUp(t, conn, files(threeFiles...))

	older := files(threeFiles[:2]...)
	older["code/010_label_of.sql"] = &fstest.MapFile{Data: []byte("select 1 / 0;")}
	mustUp(t, conn, older)
	state := mustStatus(t, conn, older)
	if !state.Newer() || !state.Ready() || len(state.Pending) != 0 {
		t.Errorf("an older binary sees %+v", state)
	}
	if got := value(t, conn, "select version::text from schema_version"); got != "2" {
		t.Errorf("version went to %s", got)
	}
}

func TestAFailureNamesFileAndLineAndLeavesNothingHalfDone(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, body, says string }{
		{"002_bad.sql", "create table kept ();\n\nselect 1 +\n;", "002_bad.sql, line 4"},
		{"002_bad.sql", "create table kept ();\ninsert into crate values ('x');", "002_bad.sql, line 2"},
		{"code/010_bad.sql", "-- A comment\ncreate table kept ();\nselect nothing_of_the_name();", "code/010_bad.sql, line 3"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			conn := pgtest.NewEmpty(t).Conn(t)
			set := files(append(threeFiles[:2:2], test.name, test.body)...)
			err := migrations.UpFiles(t.Context(), conn, set)
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("error is %v, want it to say %s", err, test.says)
			}
			var pgErr *pgconn.PgError
			if !errors.As(err, &pgErr) {
				t.Errorf("%v hides the database's error", err)
			}
			if got := value(t, conn, "select to_regclass('crate')::text || coalesce(to_regclass('kept')::text, ' alone')"); got != "crate alone" {
				t.Errorf("the database has %s", got)
			}
			// The lock is free again, and the repaired set goes on from where it stopped.
			set[test.name] = &fstest.MapFile{Data: []byte("select 1;")}
			mustUp(t, conn, set)
		})
	}
}

// before is the set of this release without the migrations from a file on.
func before(t *testing.T, first string) fstest.MapFS {
	t.Helper()
	names, err := filepath.Glob("*.sql")
	if err != nil {
		t.Fatal(err)
	}
	code, err := filepath.Glob("code/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	set := fstest.MapFS{}
	for _, name := range append(names, code...) {
		if name >= first && !strings.HasPrefix(name, "code/") {
			continue
		}
		body, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		set[name] = &fstest.MapFile{Data: body}
	}
	return set
}

// A partition that was made ahead goes only from a database that never had a task. A sequence that was moved to a fresh partition
// looks as if it had given out nothing.
func TestTheUpgradeDropsNoPartitionOfADatabaseInUse(t *testing.T) {
	t.Parallel()
	const partitions = "select string_agg(inhrelid::regclass::text, ' ' order by inhrelid) from pg_inherits where inhparent = 'task'::regclass"
	for _, test := range []struct{ name, use, want string }{
		{"unused", "", "task_p0"},
		{"rolled", `
			insert into namespace (name) values ('default');
			insert into task (task_id, namespace_id, name, context, step_count, created_at)
				values (1 << 14, 1, 't', '{}', 1, now()), (((1::bigint << 28) + 5) << 14, 1, 't', '{}', 1, now());
			select nextval('task_number_seq'), roll_task_numbers(0, '0');
			select nextval('task_number_seq'), roll_task_numbers(0, '0');
			select 1 / (last_value >> 28 = 2 and not is_called)::int from task_number_seq`, "task_p0 task_p1 task_p2 task_p3"},
		{"used and purged", "select nextval('task_number_seq')", "task_p0 task_p1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			conn := pgtest.NewEmpty(t).Conn(t)
			mustUp(t, conn, before(t, "010"))
			if _, err := conn.Exec(t.Context(), test.use, pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatal(err)
			}
			tasks := value(t, conn, "select count(*)::text from task")
			if err := migrations.Up(t.Context(), conn); err != nil {
				t.Fatal(err)
			}
			if got := value(t, conn, partitions); got != test.want {
				t.Errorf("partitions %s, want %s", got, test.want)
			}
			if got := value(t, conn, "select count(*)::text from task"); got != tasks {
				t.Errorf("%s tasks are left of %s", got, tasks)
			}
		})
	}
}

func TestAnyNumberOfProcessesMayMigrateAtOnce(t *testing.T) {
	t.Parallel()
	db := pgtest.NewEmpty(t)
	// The second one would fail for whoever came late to an unlocked race: the column is there already.
	set := files(threeFiles...)
	const processes = 8
	errs := make([]error, processes)
	var all sync.WaitGroup
	for i := range processes {
		conn := db.Conn(t)
		all.Go(func() { errs[i] = migrations.UpFiles(t.Context(), conn, set) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if state := mustStatus(t, db.Conn(t), set); !state.Ready() {
		t.Errorf("afterwards: %+v", state)
	}
}

func TestAMigrationMayOptOutOfItsTransaction(t *testing.T) {
	t.Parallel()
	conn := pgtest.NewEmpty(t).Conn(t)
	mustUp(t, conn, files(append(threeFiles[:4:4], "003_index.sql",
		"---- tern: disable-tx ----\ncreate index concurrently crate_label on crate (label);")...))
	if got := value(t, conn, "select to_regclass('crate_label')::text"); got != "crate_label" {
		t.Errorf("index is %s", got)
	}
}

func TestNoSchemaToCreateIn(t *testing.T) {
	t.Parallel()
	conn := pgtest.NewEmpty(t).Conn(t)
	if _, err := conn.Exec(t.Context(), "set search_path = nowhere"); err != nil {
		t.Fatal(err)
	}
	if err := migrations.Up(t.Context(), conn); !errors.Is(err, migrations.ErrNoSchema) {
		t.Errorf("error is %v", err)
	}
}

func TestAWaitingMigrationCanBeCancelled(t *testing.T) {
	t.Parallel()
	db := pgtest.NewEmpty(t)
	holder, waiter := db.Conn(t), db.Conn(t)
	if _, err := holder.Exec(t.Context(), "select pg_advisory_lock($1)", migrations.UpLock); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- migrations.UpFiles(ctx, waiter, files(threeFiles...)) }()
	for value(t, holder, "select count(*)::text from pg_locks where locktype = 'advisory' and not granted and database = (select oid from pg_database where datname = current_database())") != "1" {
		select {
		case err := <-result:
			t.Fatalf("it did not wait: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	if got := value(t, holder, "select to_regclass('crate')::text"); got != "<null>" {
		t.Errorf("it made %s without the lock", got)
	}
}

func TestHashFollowsEveryFile(t *testing.T) {
	t.Parallel()
	digest := func(set fstest.MapFS) string {
		t.Helper()
		got, err := migrations.HashFiles(set)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	base := digest(files(threeFiles...))
	for i := 1; i < len(threeFiles); i += 2 {
		changed := append([]string{}, threeFiles...)
		changed[i] += " "
		if digest(files(changed...)) == base {
			t.Errorf("a change of %s changes nothing", changed[i-1])
		}
	}
	if len(migrations.Hash()) != 64 {
		t.Errorf("Hash() = %q", migrations.Hash())
	}
}
