package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	startTimeout = time.Minute
	stopTimeout  = 25 * time.Second
	tailBytes    = 16 << 10
)

// process is a server that was started for the run. It says on its first line of output where it listens.
type process struct {
	address string
	command *exec.Cmd
	gone    chan struct{} // closed when it has ended
	err     error         // how
	said    tail
	stopped bool
}

// spawn starts the program with args and waits until it serves. Configuration in our own environment is kept from it: what
// is measured is the default.
func (w *world) spawn(ctx context.Context, environment []string, args ...string) (*process, error) {
	all := append(append([]string(nil), w.Binary...), args...)
	p := &process{command: exec.Command(all[0], all[1:]...), gone: make(chan struct{})} //nolint:noctx // ended in order, by stop
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "TASKER_") {
			p.command.Env = append(p.command.Env, variable)
		}
	}
	p.command.Env = append(p.command.Env, environment...)
	first := &firstLine{line: make(chan string, 1)}
	p.command.Stdout, p.command.Stderr = first, &p.said
	p.command.SysProcAttr = apart()
	started := make(chan error)
	go func() {
		// The child dies with the thread that made it, where it dies with its parent at all.
		runtime.LockOSThread()
		err := p.command.Start()
		started <- err
		if err == nil {
			p.err = p.command.Wait()
			close(p.gone)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	timer := time.NewTimer(startTimeout)
	defer timer.Stop()
	var err error
	select {
	case line := <-first.line:
		address, ok := strings.CutPrefix(line, "serving on ")
		if ok {
			p.address = address
			return p, nil
		}
		err = fmt.Errorf("it said %q first", line)
	case <-p.gone:
		err = fmt.Errorf("it ended: %w", p.err)
	case <-timer.C:
		err = errors.New("it is not ready after a minute")
	case <-ctx.Done():
		err = ctx.Err()
	}
	p.stopped = true
	_ = p.command.Process.Kill()
	<-p.gone
	return nil, fmt.Errorf("%w; its last words:\n%s", err, p.said.text())
}

func (p *process) pid() int { return p.command.Process.Pid }

// stop ends it as an operator would.
func (p *process) stop() error {
	if p.stopped {
		return nil
	}
	p.stopped = true
	select {
	case <-p.gone:
		return fmt.Errorf("a server ended during the run: %w; its last words:\n%s", p.err, p.said.text())
	default:
	}
	_ = p.command.Process.Signal(syscall.SIGTERM)
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-p.gone:
		if p.err != nil {
			return fmt.Errorf("stopping a server: %w; its last words:\n%s", p.err, p.said.text())
		}
		return nil
	case <-timer.C:
		_ = p.command.Process.Kill()
		<-p.gone
		return errors.New("a server did not stop and was killed")
	}
}

// firstLine passes on the first line that is written to it, and nothing more.
type firstLine struct {
	read bytes.Buffer
	line chan string
	done bool
}

func (f *firstLine) Write(b []byte) (int, error) {
	if f.done {
		return len(b), nil
	}
	f.read.Write(b)
	line, err := f.read.ReadString('\n')
	if errors.Is(err, io.EOF) {
		f.read.WriteString(line) // not whole yet
		return len(b), nil
	}
	f.done = true
	f.line <- strings.TrimSpace(line)
	return len(b), nil
}

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex
	last []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = append(t.last, b...)
	if over := len(t.last) - tailBytes; over > 0 {
		t.last = append(t.last[:0], t.last[over:]...)
	}
	return len(b), nil
}

func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.last)
}
