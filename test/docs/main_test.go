package docs_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// work is a folder that is removed at the end; program, in it, is the built tasker, and stubs the folder of the Python stubs.
var work, program, stubs string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if work, err = os.MkdirTemp("", "tasker-docs-"); err == nil {
		// PostgreSQL may run as another user, who must get through.
		err = os.Chmod(work, 0o755)
	}
	defer os.RemoveAll(work) //nolint:errcheck // Nobody is left to tell.
	if err == nil {
		err = build()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "preparing the tests of the pages:", err)
		return 1
	}
	code := m.Run()
	if shared.server != nil {
		if err := shared.server.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stopping the server:", err)
			return max(code, 1)
		}
	}
	return code
}

// python is the interpreter of the module's own environment, which `make test` sees to.
func python() string {
	path, err := filepath.Abs(filepath.Join(root, ".venv/bin/python"))
	if err != nil {
		return "python3"
	}
	return path
}

// build makes the program and the stubs as a reader would.
func build() error {
	program, stubs = filepath.Join(work, "tasker"), filepath.Join(work, "stubs")
	if err := os.Mkdir(stubs, 0o755); err != nil {
		return err
	}
	protos, err := filepath.Glob(filepath.Join(root, "gen/proto/tasker/v1/*.proto"))
	if err != nil {
		return err
	}
	protoc := []string{"-m", "grpc_tools.protoc", "-I", filepath.Join(root, "gen/proto"), "--python_out", stubs, "--grpc_python_out", stubs}
	for _, cmd := range []*exec.Cmd{
		exec.Command("go", "build", "-o", program, "github.com/taskerhq/tasker/cmd/tasker"),
		exec.Command(python(), append(protoc, protos...)...),
	} {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", cmd, err, out)
		}
	}
	return nil
}

// server is a `tasker serve` with a PostgreSQL of its own.
type server struct {
	cmd              *exec.Cmd
	address, dataDir string
	log              *bytes.Buffer
}

// startServer starts a server and waits until it is ready.
func startServer(dataDir, listen string) (*server, error) {
	s := &server{cmd: exec.Command(program, "serve", "--listen", listen, "--data-dir", dataDir), dataDir: dataDir, log: &bytes.Buffer{}}
	s.cmd.Stderr = s.log
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	address, ok := strings.CutPrefix(strings.TrimSpace(line), "serving on ")
	if err != nil || !ok {
		_ = s.cmd.Process.Kill() // It may be gone already.
		_ = s.cmd.Wait()
		return nil, fmt.Errorf("the server said %q: %w\n%s", line, err, s.log)
	}
	s.address = address
	return s, nil
}

func (s *server) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return s.cmd.Wait()
}

func (s *server) kill() {
	_ = s.cmd.Process.Kill() // It may be gone already.
	_ = s.cmd.Wait()
}

// shared is the server of the tests that do it no harm.
var shared struct {
	once   sync.Once
	server *server
	err    error
}

func sharedServer(t *testing.T) *server {
	t.Helper()
	shared.once.Do(func() { shared.server, shared.err = startServer(filepath.Join(work, "shared"), "127.0.0.1:0") })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.server
}

// eventually waits until something holds.
func eventually(t *testing.T, what string, within time.Duration, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", within, what)
		}
	}
}
