//go:build unix

package postgres_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/postgres"
)

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
