//go:build linux

package chaos_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// process is a child: a server or a worker. Its standard error goes to a file of its own.
type process struct {
	name   string
	cmd    *exec.Cmd
	log    string
	gone   chan struct{} // closed when it has ended
	err    error         // how
	wanted atomic.Bool   // it was killed, or told to stop
}

// launch starts a process that ends with this one, however this one ends.
func launch(dir, name string, stdout io.Writer, env []string, program string, args ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".log"), gone: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, fmt.Errorf("making the log of %s: %w", name, err)
	}
	defer func() { _ = log.Close() }() // The process has its own.
	p.cmd = exec.Command(program, args...)
	p.cmd.Stdout, p.cmd.Stderr = stdout, log
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.WaitDelay = time.Second
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The signal comes when the thread ends that started the child, so that thread waits for it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			close(p.gone)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	return p, nil
}

// serve launches a process and waits for its first line, by which it says that it works: what is done to it from then on, it heeds.
// One that does not say so in time is killed.
func serve(dir, name string, patience time.Duration, env []string, program string, args ...string) (p *process, line string, err error) {
	out, in, err := os.Pipe()
	if err != nil {
		return nil, "", fmt.Errorf("making a pipe for %s: %w", name, err)
	}
	defer func() { _ = out.Close() }()
	p, err = launch(dir, name, in, env, program, args...)
	_ = in.Close() // The process has its own.
	if err != nil {
		return nil, "", err
	}
	if err = out.SetReadDeadline(time.Now().Add(patience)); err == nil {
		line, err = bufio.NewReader(out).ReadString('\n')
	}
	if err != nil {
		p.kill()
		return nil, "", fmt.Errorf("%s does not serve: %w%s", name, err, p.lastWords(15))
	}
	return p, strings.TrimSpace(line), nil
}

// signal sends a signal to a process that may be gone.
func (p *process) signal(s os.Signal) { _ = p.cmd.Process.Signal(s) }

// kill is kill -9. It returns when the process is gone.
func (p *process) kill() {
	p.wanted.Store(true)
	p.signal(syscall.SIGKILL)
	<-p.gone
}

// stop asks the process to end and gives it the time to. Only an end without an error is in order.
func (p *process) stop(patience time.Duration) error {
	p.wanted.Store(true)
	p.signal(syscall.SIGTERM)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-p.gone:
		if p.err != nil {
			return fmt.Errorf("%s stopped with %w%s", p.name, p.err, p.lastWords(15))
		}
		return nil
	case <-timer.C:
		p.signal(syscall.SIGQUIT) // It says where it is.
		timer.Reset(5 * time.Second)
		select {
		case <-p.gone:
		case <-timer.C:
		}
		words := p.lastWords(2000)
		p.kill()
		return fmt.Errorf("%s did not stop within %s%s", p.name, patience, words)
	}
}

// diedAlone says how a process ended that was not to.
func (p *process) diedAlone() error {
	select {
	case <-p.gone:
		if !p.wanted.Load() {
			return fmt.Errorf("%s ended by itself: %w%s", p.name, p.err, p.lastWords(15))
		}
	default:
	}
	return nil
}

// lastWords are the end of the process's log.
func (p *process) lastWords(lines int) string {
	body, _ := os.ReadFile(p.log) // It has nothing to say.
	all := strings.Split(strings.TrimSpace(string(body)), "\n")
	return ":\n" + strings.Join(all[max(0, len(all)-lines):], "\n")
}

// outcry are the lines that no process may write, whatever is done to it: defects that a server found in itself, panics,
// and data races.
func outcry(t *testing.T, dir string) (lines []string) {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, log := range logs {
		body, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(body)) {
			if strings.Contains(line, "level=ERROR") || strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") ||
				strings.Contains(line, "DATA RACE") {
				lines = append(lines, filepath.Base(log)+": "+strings.TrimSpace(line))
			}
		}
	}
	return lines
}
