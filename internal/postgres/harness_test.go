//go:build unix

package postgres_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
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
