//go:build unix

package postgres_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/taskerhq/tasker/internal/postgres"
)

// childEnv makes this test binary a process that starts a server and then waits to be told, or killed.
const childEnv = "TASKER_TEST_POSTGRES_CHILD"

// guardianEnv makes such a process live as on a system whose kernel does not signal the children of the dead.
const guardianEnv = "TASKER_TEST_POSTGRES_GUARDIAN"

// patience bounds every wait for something that must happen.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	if config := os.Getenv(childEnv); config != "" {
		os.Exit(child(config))
	}
	goleak.VerifyTestMain(m)
}

// child starts a server as its JSON configuration says, prints what it got, and stops it at SIGTERM.
func child(config string) int {
	var cfg postgres.Config
	if err := json.Unmarshal([]byte(config), &cfg); err != nil {
		fmt.Println("error", err)
		return 1
	}
	cfg.Logger = quiet()
	if os.Getenv(guardianEnv) != "" {
		postgres.WithoutKernel()
	}
	terminated, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	ctx, cancelStart := context.WithTimeout(terminated, patience)
	defer cancelStart()
	server, err := postgres.Start(ctx, cfg)
	if err != nil {
		fmt.Println("error", strings.ReplaceAll(err.Error(), "\n", " "))
		return 1
	}
	fmt.Println("ready", server.ConnString(postgres.Database), server.Joined(), server.DataDir())
	select {
	case <-terminated.Done():
	case <-server.Done():
		fmt.Println("done", server.Err())
	}
	if err := server.Stop(context.Background()); err != nil {
		fmt.Println("error", err)
		return 1
	}
	fmt.Println("stopped")
	return 0
}

// process is a running child.
type process struct {
	cmd    *exec.Cmd
	lines  *bufio.Scanner
	url    string
	joined bool
	dir    string
}

func spawn(t *testing.T, cfg map[string]any) *process {
	t.Helper()
	config, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(config))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// One that was killed on purpose is gone already.
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	return &process{cmd: cmd, lines: bufio.NewScanner(out)}
}

// line is the next line that the child prints, split into words.
func (p *process) line(t *testing.T) []string {
	t.Helper()
	if !p.lines.Scan() {
		t.Fatalf("the process ended without a word: %v", p.lines.Err())
	}
	return strings.Fields(p.lines.Text())
}

func (p *process) ready(t *testing.T) *process {
	t.Helper()
	words := p.line(t)
	if words[0] != "ready" {
		t.Fatalf("the process says %s", words)
	}
	p.url, p.joined, p.dir = words[1], words[2] == "true", words[3]
	return p
}

// kill is kill -9.
func (p *process) kill(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.cmd.Wait()
}

func (p *process) terminate(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func start(t *testing.T, cfg postgres.Config) *postgres.Server {
	t.Helper()
	server, err := tryStart(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return server
}

func tryStart(t *testing.T, cfg postgres.Config) (*postgres.Server, error) {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = quiet()
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	server, err := postgres.Start(ctx, cfg)
	if server != nil {
		t.Cleanup(func() { stop(t, server) })
	}
	return server, err
}

func stop(t *testing.T, server *postgres.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := server.Stop(ctx); err != nil {
		t.Errorf("stopping: %v", err)
	}
}

// query runs statements on a fresh connection and returns the single value of the last, if it has one.
func query(t *testing.T, url, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	results, err := conn.PgConn().Exec(t.Context(), sql).ReadAll()
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	last := results[len(results)-1]
	if len(last.Rows) == 0 {
		return ""
	}
	return string(last.Rows[0][0])
}

// postmasterPID reads the pid file of a running cluster.
func postmasterPID(t *testing.T, dataDir string) int {
	t.Helper()
	body, err := os.ReadFile(filepath.Join(dataDir, "pgdata", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(body), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// eventually polls until the condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	// An ended process that its parent has not asked about yet still takes signals.
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || !strings.Contains(string(stat), ") Z ")
}

func serverLog(t *testing.T, dataDir string) string {
	t.Helper()
	body, err := os.ReadFile(filepath.Join(dataDir, "postgres.log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

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

func TestKillOfTheOwnerStopsPostgresCleanly(t *testing.T) {
	for name, guardian := range map[string]string{"by the kernel": "", "by the guardian": "yes"} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(guardianEnv, guardian)
			killOwner(t)
		})
	}
}

func killOwner(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	owner := spawn(t, map[string]any{"DataDir": dir}).ready(t)
	query(t, owner.url, "create table kept as select generate_series(1, 1000) as n")
	postmaster := postmasterPID(t, dir)
	if !alive(postmaster) {
		t.Fatal("the postmaster does not run")
	}
	owner.kill(t)
	eventually(t, "the postmaster ends", func() bool { return !alive(postmaster) })

	server := start(t, postgres.Config{DataDir: dir})
	if server.Joined() {
		t.Error("it joined a dead owner")
	}
	if got := query(t, server.ConnString(postgres.Database), "select count(*) from kept"); got != "1000" {
		t.Errorf("%s rows", got)
	}
	if log := serverLog(t, dir); !strings.Contains(log, "received fast shutdown request") || strings.Contains(log, "not properly shut down") {
		t.Errorf("the shutdown was not clean:\n%s", log)
	}
}

// The next owner comes at once, while the old postmaster is still on its way out.
func TestANewOwnerWaitsForTheOldPostmaster(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	owner := spawn(t, map[string]any{"DataDir": dir}).ready(t)
	query(t, owner.url, "create table kept (n int)")
	for round := range 5 {
		query(t, owner.url, "insert into kept select generate_series(1, 20000)")
		owner.kill(t)
		owner = spawn(t, map[string]any{"DataDir": dir}).ready(t)
		if owner.joined {
			t.Fatal("joined a dead owner")
		}
		if got, want := query(t, owner.url, "select count(*) from kept"), strconv.Itoa(20000*(round+1)); got != want {
			t.Fatalf("round %d: %s rows, want %s", round, got, want)
		}
	}
}

func TestCrashOfOwnerAndPostmasterRecovers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	owner := spawn(t, map[string]any{"DataDir": dir}).ready(t)
	query(t, owner.url, "create table kept as select generate_series(1, 1000) as n")
	postmaster := postmasterPID(t, dir)
	// Stopped, it cannot heed the signal that its owner's death sends.
	for _, kill := range []struct {
		pid    int
		signal syscall.Signal
	}{{postmaster, syscall.SIGSTOP}, {owner.cmd.Process.Pid, syscall.SIGKILL}, {postmaster, syscall.SIGKILL}} {
		if err := syscall.Kill(kill.pid, kill.signal); err != nil {
			t.Fatal(err)
		}
	}
	_ = owner.cmd.Wait()
	if _, err := os.Stat(filepath.Join(dir, "pgdata", "postmaster.pid")); err != nil {
		t.Fatalf("there is no stale pid file to overcome: %v", err)
	}
	server := start(t, postgres.Config{DataDir: dir})
	if got := query(t, server.ConnString(postgres.Database), "select count(*) from kept"); got != "1000" {
		t.Errorf("%s rows", got)
	}
	if log := serverLog(t, dir); !strings.Contains(log, "not properly shut down") {
		t.Errorf("nothing was recovered, so nothing was tested:\n%s", log)
	}
}

// In a container the number of a killed postmaster soon belongs to somebody else.
func TestAStalePidFileThatNamesAStranger(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	server := start(t, postgres.Config{DataDir: dir})
	pidFile := filepath.Join(dir, "pgdata", "postmaster.pid")
	body, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	stop(t, server)
	_, rest, _ := strings.Cut(string(body), "\n")
	stranger := exec.CommandContext(t.Context(), "sleep", "600")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stranger.Process.Kill(); _ = stranger.Wait() }()
	if err := os.WriteFile(pidFile, fmt.Appendf(nil, "%d\n%s", stranger.Process.Pid, rest), 0o600); err != nil {
		t.Fatal(err)
	}
	query(t, start(t, postgres.Config{DataDir: dir}).ConnString(postgres.Database), "select 1")
	if !alive(stranger.Process.Pid) {
		t.Error("the stranger is dead")
	}
}

func TestADeadPostmasterIsRestarted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	server := start(t, postgres.Config{DataDir: dir})
	url := server.ConnString(postgres.Database)
	query(t, url, "create table kept as select 42 as answer")
	first := postmasterPID(t, dir)
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a new postmaster answers", func() bool {
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			return false
		}
		defer func() { _ = conn.Close(context.Background()) }()
		var answer int
		return conn.QueryRow(t.Context(), "select answer from kept").Scan(&answer) == nil && answer == 42
	})
	if second := postmasterPID(t, dir); second == first {
		t.Error("it is the same postmaster")
	}
	select {
	case <-server.Done():
		t.Errorf("it was given up: %v", server.Err())
	default:
	}
}

func TestAPostmasterThatKeepsDyingIsGivenUp(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	server := start(t, postgres.Config{DataDir: dir})
	killed := map[int]bool{}
	for deadline := time.After(patience); ; {
		select {
		case <-server.Done():
			if err := server.Err(); err == nil || !strings.Contains(err.Error(), "killed") {
				t.Errorf("it was given up for %v", err)
			}
			if len(killed) != 5 {
				t.Errorf("it was given up after %d deaths", len(killed))
			}
			return
		case <-deadline:
			t.Fatalf("not given up after %d deaths", len(killed))
		case <-time.After(5 * time.Millisecond):
			body, err := os.ReadFile(filepath.Join(dir, "pgdata", "postmaster.pid"))
			first, _, _ := strings.Cut(string(body), "\n")
			pid, convErr := strconv.Atoi(first)
			// A stale file names this process.
			if err == nil && convErr == nil && pid != os.Getpid() && !killed[pid] && syscall.Kill(pid, syscall.SIGKILL) == nil {
				killed[pid] = true
			}
		}
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
