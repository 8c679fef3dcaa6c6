package docs_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/postgres"
)

// noteDatabase marks commands for a PostgreSQL of the reader's own.
const noteDatabase = "database"

// defaultAddress is what the pages say of a server's address.
const defaultAddress = "127.0.0.1:7420"

// longRun takes longer than a test should, and shorterRun is still more than two leases.
const (
	longRun    = `{"seconds": 60}`
	shorterRun = `{"seconds": 12}`
)

// demoTasks is how many tasks `make demo` gets here.
const demoTasks = 40

// The commands of each page run in order, in one shell, in a folder that looks like a checkout.
func TestShell(t *testing.T) {
	for _, page := range pages(t) {
		var blocks []fence
		for _, fence := range fences(t, page) {
			if fence.language == "sh" || fence.language == "python" || fence.language == "yaml" {
				blocks = append(blocks, fence)
			}
		}
		t.Run(page, func(t *testing.T) {
			t.Parallel()
			shell := newShell(t)
			shell.run(t, blocks)
		})
	}
}

// shell is the folder and the environment that a page's commands run in.
type shell struct {
	dir, address string
	env          []string
}

func newShell(t *testing.T) *shell {
	t.Helper()
	dir, err := os.MkdirTemp(work, "shell-") //nolint:usetesting // PostgreSQL may run as another user, who cannot enter what t.TempDir makes.
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &shell{dir: dir, address: freeAddress(t)}
	bin := filepath.Join(dir, "path")
	for _, folder := range []string{bin, filepath.Join(dir, "bin"), filepath.Join(dir, "tmp")} {
		if err := os.Mkdir(folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	module, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{
		filepath.Join(dir, "gen"):    filepath.Join(module, "gen"),
		filepath.Join(bin, "tasker"): program,
		// A page that does not say "make build" has been led to from one that does.
		filepath.Join(dir, "bin", "tasker"): program,
	} {
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
	}
	// make: what builds is built already, as what is needed is there, the demo gets fewer tasks, and the suite cannot run inside
	// itself.
	s.script(t, filepath.Join(bin, "make"), fmt.Sprintf(`case "${1:-}" in
  build) ln -sf %[1]q bin/tasker ;;
  demo) %[1]q demo --tasks %[2]d --python %[3]q ;;
  deps | test) /usr/bin/env -i PATH=/usr/bin:/bin make -n -C %[4]q "$1" >/dev/null ;;
  *) /usr/bin/env -i PATH=/usr/bin:/bin make -C %[4]q "$@" ;;
esac`, program, demoTasks, python(), module))
	// python3 -m venv: the module's own environment, which has the packages.
	s.script(t, filepath.Join(bin, "python3"), fmt.Sprintf(`[ "$*" = "-m venv .venv" ] && exec ln -sfn %q .venv
exec /usr/bin/env python3 "$@"`, filepath.Join(module, ".venv")))
	s.env = append(os.Environ(),
		"PATH="+bin+":"+os.Getenv("PATH"), "TASKER_LISTEN="+s.address, "TASKER_ADDRESS="+s.address, "XDG_STATE_HOME="+filepath.Join(dir, "state"),
		"PYTHONDONTWRITEBYTECODE=1", "PIP_NO_INDEX=1", "PIP_DISABLE_PIP_VERSION_CHECK=1")
	return s
}

func (s *shell) script(t *testing.T, path, body string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("#!/bin/bash\nset -euo pipefail\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// freeAddress is a loopback address that nobody listened on a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // It is closed at once.
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close() //nolint:errcheck // Nothing was sent.
	return listener.Addr().String()
}

// ready is what a reader does by looking: wait until the server that was just started says so.
const ready = `for _ in $(seq 300); do tasker health >/dev/null 2>&1 && break; sleep 0.1; done; tasker health >/dev/null`

// run writes the files that the page shows, and runs its commands.
func (s *shell) run(t *testing.T, blocks []fence) {
	t.Helper()
	var script strings.Builder
	commands := 0
	for _, block := range blocks {
		text := strings.ReplaceAll(block.text, defaultAddress, s.address)
		text = strings.ReplaceAll(text, longRun, shorterRun)
		if block.language != "sh" {
			if block.note != "" {
				if err := os.WriteFile(filepath.Join(s.dir, block.note), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			continue
		}
		if block.note == noteDatabase && commands == 0 {
			s.database(t)
		}
		commands++
		fmt.Fprintf(&script, "echo '--- %s:%d' >&2\n%s", block.page, block.line, text)
		if strings.Contains(text, "tasker serve") {
			fmt.Fprintln(&script, ready)
		}
	}
	if commands == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script.String()+stopAll)
	cmd.Dir, cmd.Env = s.dir, s.env
	// What it leaves in the background is ended with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	began := time.Now()
	err := cmd.Run()
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // Nothing is left if all went well.
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	t.Logf("%d blocks ran in %s\n%s", commands, time.Since(began).Round(time.Millisecond), out.String())
}

// stopAll ends what was started in the background, newest first, so that workers find their server to say goodbye to.
const stopAll = `
for pid in $(jobs -p | tac); do
  kill "$pid" 2>/dev/null || true
  wait "$pid" || true
done
`

// database makes a cluster of the reader's own, whose database belongs to somebody who is no superuser, and gives the page its
// addresses.
func (s *shell) database(t *testing.T) {
	t.Helper()
	cluster, err := postgres.Start(t.Context(), postgres.Config{Ephemeral: true, NoFsync: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	conn, err := pgx.Connect(t.Context(), cluster.ConnString("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	for _, statement := range []string{"create role dba login createrole", "create database reader owner dba"} {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	as := func(user string) string {
		address, err := url.Parse(cluster.ConnString("reader"))
		if err != nil {
			t.Fatal(err)
		}
		address.User = url.User(user)
		return address.String()
	}
	s.env = append(s.env, "ADMIN_URL="+as("dba"), "TASKER_DATABASE_URL="+as("tasker_app"))
}
