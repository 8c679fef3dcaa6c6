//go:build unix

package postgres_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/postgres"
)

func TestStartMakesAClusterAndFindsItAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := start(t, postgres.Config{DataDir: dir})
	if first.Joined() || first.Version() < 15 || first.DataDir() != dir {
		t.Errorf("started %+v", first.Info())
	}
	url := first.ConnString(postgres.Database)
	query(t, url, "create table kept as select 42 as answer")
	stop(t, first)
	if _, err := pgx.Connect(t.Context(), url); err == nil {
		t.Error("it accepts connections after Stop")
	}
	if _, err := os.Stat(first.Info().SocketDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its socket directory remains: %v", err)
	}

	second := start(t, postgres.Config{DataDir: dir})
	if second.ConnString(postgres.Database) != url {
		t.Errorf("its address changed from %s to %s", url, second.ConnString(postgres.Database))
	}
	if got := query(t, second.ConnString(postgres.Database), "select answer from kept"); got != "42" {
		t.Errorf("after a restart the answer is %s", got)
	}
	if log := serverLog(t, dir); strings.Contains(log, "recovery") {
		t.Errorf("the stop was not clean:\n%s", log)
	}
}

func TestOnlyAPrivateSocketListens(t *testing.T) {
	t.Parallel()
	server := start(t, postgres.Config{DataDir: t.TempDir(), Settings: map[string]string{"listen_addresses": "*"}})
	url := server.ConnString(postgres.Database)
	if got := query(t, url, "show listen_addresses"); got != "" {
		t.Errorf("listen_addresses = %q, even though asked for", got)
	}
	info, err := os.Stat(server.Info().SocketDir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("socket directory: %v, %v", info.Mode(), err)
	}
	if got := query(t, url, "select count(*) from pg_hba_file_rules where type <> 'local' and auth_method <> 'reject'"); got != "0" {
		t.Errorf("%s rules let somebody in over a network", got)
	}
}

func TestSettingsWinInTheirOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	show := func(server *postgres.Server, name string) string {
		return query(t, server.ConnString(postgres.Database), "show "+name)
	}
	server := start(t, postgres.Config{DataDir: dir, Settings: map[string]string{"work_mem": "5MB"}})
	for name, want := range map[string]string{
		"jit": "off", "work_mem": "5MB", "shared_buffers": "128MB", "timezone": "UTC",
		"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "data_checksums": "on",
		"server_encoding": "UTF8", "lc_collate": "C",
	} {
		if name == "lc_collate" && server.Version() > 15 {
			continue // No longer a parameter.
		}
		if got := show(server, name); got != want {
			t.Errorf("%s = %s, want %s", name, got, want)
		}
	}
	query(t, server.ConnString(postgres.Database), "alter system set random_page_cost = 3")
	stop(t, server)

	conf := filepath.Join(dir, "pgdata", "postgresql.conf")
	body, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, append(body, "work_mem = 7MB\nrandom_page_cost = 2\njit = on\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	server = start(t, postgres.Config{DataDir: dir, Settings: map[string]string{"jit": "off"}})
	for name, want := range map[string]string{"work_mem": "7MB", "random_page_cost": "3", "jit": "off"} {
		if got := show(server, name); got != want {
			t.Errorf("after editing: %s = %s, want %s", name, got, want)
		}
	}
}

// A directory that only root can enter, as mktemp -d makes for root, has no path for the user that runs Postgres.
func TestADataDirectoryBehindClosedDoors(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Log("not root: Postgres runs as ourselves and every directory of ours is open to it")
	}
	closed := filepath.Join(t.TempDir(), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(closed, "data")
	for range 2 {
		server := start(t, postgres.Config{DataDir: dir})
		query(t, server.ConnString(postgres.Database), "create table if not exists kept (); checkpoint; select pg_reload_conf()")
		stop(t, server)
	}
	info, err := os.Stat(closed)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the closed directory is now %v, %v", info.Mode(), err)
	}
}

func TestASecondStartJoins(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	owner := spawn(t, map[string]any{"DataDir": dir}).ready(t)
	query(t, owner.url, "create table kept as select 42 as answer")

	member := start(t, postgres.Config{DataDir: dir})
	if !member.Joined() || member.Info().OwnerPID != owner.cmd.Process.Pid {
		t.Errorf("it did not join the owner %d: %+v", owner.cmd.Process.Pid, member.Info())
	}
	if got := query(t, member.ConnString(postgres.Database), "select answer from kept"); got != "42" {
		t.Errorf("it joined another server: %s", got)
	}
	stop(t, member)
	query(t, owner.url, "select 1")

	member = start(t, postgres.Config{DataDir: dir})
	owner.terminate(t)
	select {
	case <-member.Done():
	case <-time.After(patience):
		t.Fatal("a member did not notice that the owner stopped")
	}
	if member.Err() == nil {
		t.Error("Done without a reason")
	}
	if words := owner.line(t); words[0] != "stopped" {
		t.Errorf("the owner says %s", words)
	}
}

func TestManyStartsAtOnceMakeOneServer(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	const processes = 6
	children := make([]*process, processes)
	for i := range children {
		children[i] = spawn(t, map[string]any{"DataDir": dir})
	}
	owners := 0
	for _, child := range children {
		if child.ready(t); !child.joined {
			owners++
		}
		if child.url != children[0].url {
			t.Errorf("two servers: %s and %s", child.url, children[0].url)
		}
	}
	if owners != 1 {
		t.Errorf("%d owners", owners)
	}
}

func TestAttachFindsWhatRuns(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := postgres.Attach(t.Context(), dir); !errors.Is(err, postgres.ErrNotRunning) {
		t.Errorf("nothing runs: %v", err)
	}
	owner := spawn(t, map[string]any{"DataDir": dir}).ready(t)
	info, err := postgres.Attach(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if info.ConnString(postgres.Database) != owner.url || info.OwnerPID != owner.cmd.Process.Pid || info.BinDir == "" {
		t.Errorf("found %+v, want %s", info, owner.url)
	}
	owner.kill(t)
	eventually(t, "it is not found any more", func() bool {
		_, err := postgres.Attach(t.Context(), dir)
		return errors.Is(err, postgres.ErrNotRunning)
	})
	start(t, postgres.Config{DataDir: dir}) // Tidies up after the dead.
}

func TestEphemeralLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*process, *testing.T){
		"stopped": (*process).terminate,
		"killed":  (*process).kill,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base := t.TempDir()
			owner := spawn(t, map[string]any{"DataDir": base, "Ephemeral": true, "NoFsync": true}).ready(t)
			if filepath.Dir(owner.dir) != base {
				t.Errorf("%s is not below %s", owner.dir, base)
			}
			postmaster := postmasterPID(t, owner.dir)
			info, err := postgres.Attach(t.Context(), owner.dir)
			if err != nil {
				t.Fatal(err)
			}
			end(owner, t)
			eventually(t, "process and files are gone", func() bool {
				left, err := os.ReadDir(base)
				_, socketErr := os.Stat(info.SocketDir)
				return !alive(postmaster) && err == nil && len(left) == 0 && errors.Is(socketErr, os.ErrNotExist)
			})
		})
	}
}

func TestStopIsBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	server := start(t, postgres.Config{DataDir: dir})
	postmaster := postmasterPID(t, dir)
	conn, err := pgx.Connect(t.Context(), server.ConnString(postgres.Database))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	// A backend that is stopped cannot end, so the fast shutdown waits for it for ever.
	backend := int(conn.PgConn().PID())
	if err := syscall.Kill(backend, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := server.Stop(ctx); err != nil {
		t.Error(err)
	}
	if alive(postmaster) {
		t.Error("the postmaster lives")
	}
	eventually(t, "the stopped backend is gone", func() bool { return !alive(backend) })
	query(t, start(t, postgres.Config{DataDir: dir}).ConnString(postgres.Database), "select 1")
}

func TestStopTwiceAndAtOnce(t *testing.T) {
	t.Parallel()
	server := start(t, postgres.Config{DataDir: t.TempDir()})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() { stop(t, server) })
	}
	all.Wait()
	select {
	case <-server.Done():
		t.Errorf("Done after Stop: %v", server.Err())
	default:
	}
}

func TestDirectoriesThatCannotBe(t *testing.T) {
	t.Parallel()
	write := func(dir, name, body string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(body), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name, file, body string
		want             []string
		is               error
	}{
		{"another major", "pgdata/PG_VERSION", "9\n", []string{"PostgreSQL 9 ", "found here: "}, postgres.ErrVersionMismatch},
		{"a cluster itself", "PG_VERSION", "15\n", []string{"a PostgreSQL cluster of its own"}, nil},
		{"files of somebody", "pgdata/diary.txt", "Dear diary", []string{"not a PostgreSQL cluster"}, nil},
		{"a garbled version", "pgdata/PG_VERSION", "fifteen", []string{"PG_VERSION"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			write(dir, test.file, test.body)
			_, err := tryStart(t, postgres.Config{DataDir: dir})
			if err == nil {
				t.Fatal("it started")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v does not say %q", err, want)
				}
			}
			if test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("%v is not %v", err, test.is)
			}
			if body, err := os.ReadFile(filepath.Join(dir, test.file)); err != nil || string(body) != test.body {
				t.Errorf("the file is now %q, %v", body, err)
			}
		})
	}
}

func TestAFailedStartSaysWhyAndLeavesNoProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, err := tryStart(t, postgres.Config{DataDir: dir, Settings: map[string]string{"shared_buffers": "plenty"}})
	if err == nil || !strings.Contains(err.Error(), "shared_buffers") {
		t.Errorf("error is %v", err)
	}
	// The locks are free and the cluster is whole.
	start(t, postgres.Config{DataDir: dir})
}

func TestAnInterruptedInitdbIsForgotten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	child := spawn(t, map[string]any{"DataDir": dir})
	eventually(t, "initdb is at work", func() bool {
		found, _ := filepath.Glob(filepath.Join(dir, "pgdata.new-*", "base"))
		return len(found) > 0
	})
	child.kill(t)
	start(t, postgres.Config{DataDir: dir})
	if left, _ := filepath.Glob(filepath.Join(dir, "pgdata.new-*")); len(left) > 0 {
		t.Errorf("left behind: %s", left)
	}
}

func TestACancelledStartEndsWhatItBegan(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ctx, cancel := context.WithCancelCause(t.Context())
	because := errors.New("changed my mind")
	cfg := postgres.Config{DataDir: dir, Logger: quiet(), Progress: func(string) { cancel(because) }}
	if _, err := postgres.Start(ctx, cfg); !errors.Is(err, because) {
		t.Errorf("error is %v", err)
	}
	start(t, postgres.Config{DataDir: dir})
}
