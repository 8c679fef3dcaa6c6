package chaos_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// nursery starts processes that end with this one, however it ends: one thread starts them all and lives as long.
type nursery struct {
	*testing.T
	dir  string
	jobs chan func()

	mu       sync.Mutex
	children []*child
}

// child is a process. Its output goes to a file.
type child struct {
	name  string
	cmd   *exec.Cmd
	log   string
	ended chan struct{} // closed when it has; err says how
	err   error
	// wanted says that we ended it.
	wanted bool
}

func newNursery(t *testing.T) *nursery {
	n := &nursery{T: t, dir: t.TempDir(), jobs: make(chan func())}
	go func() {
		runtime.LockOSThread()
		for job := range n.jobs {
			job()
		}
		runtime.UnlockOSThread()
	}()
	t.Cleanup(func() {
		n.mu.Lock()
		all := n.children
		n.mu.Unlock()
		for _, c := range all {
			c.kill()
		}
		close(n.jobs)
		if t.Failed() {
			n.lastWords()
		}
	})
	return n
}

// start starts a program. env adds to this process's own environment.
func (n *nursery) start(name string, env []string, program string, args ...string) (*child, error) {
	c := &child{name: name, log: filepath.Join(n.dir, name+".log"), ended: make(chan struct{})}
	out, err := os.OpenFile(c.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }() // The child has its own.
	c.cmd = exec.Command(program, args...)
	c.cmd.Stdout, c.cmd.Stderr = out, out
	c.cmd.Env = append(os.Environ(), env...)
	c.cmd.SysProcAttr = dieWithUs()
	done := make(chan error)
	n.jobs <- func() { done <- c.cmd.Start() }
	if err := <-done; err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	n.mu.Lock()
	n.children = append(n.children, c)
	n.mu.Unlock()
	go func() {
		c.err = c.cmd.Wait()
		close(c.ended)
	}()
	return c, nil
}

func (c *child) signal(s syscall.Signal) { _ = c.cmd.Process.Signal(s) } // It may be gone already.

// kill is kill -9. It returns when the process is gone.
func (c *child) kill() {
	c.wanted = true
	c.signal(syscall.SIGKILL)
	<-c.ended
}

func (c *child) gone() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// logs reads what all processes said.
func (n *nursery) logs() map[string]string {
	files, _ := filepath.Glob(filepath.Join(n.dir, "*.log"))
	logs := map[string]string{}
	for _, file := range files {
		body, err := os.ReadFile(file)
		if err == nil {
			logs[filepath.Base(file)] = string(body)
		}
	}
	return logs
}

func (n *nursery) lastWords() {
	for name, body := range n.logs() {
		lines := strings.Split(strings.TrimSpace(body), "\n")
		n.Logf("%s:\n%s", name, strings.Join(lines[max(len(lines)-6, 0):], "\n"))
	}
}
