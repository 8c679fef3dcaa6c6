package peers

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// answerTimeout is more than a program waits by itself before it gives up.
	answerTimeout = 5 * time.Minute
	stopTimeout   = 20 * time.Second
	tailBytes     = 4 << 10
)

// process is a program that was started for a turn.
type process struct {
	command *exec.Cmd
	in      io.WriteCloser
	lines   chan []byte
	said    tail          // on its error output
	silent  chan struct{} // closed when that has ended
	ended   chan struct{}
}

// spawn starts a program, which is a path from root or a name in PATH. Configuration in our own environment is kept from it:
// what is measured is the default, and what is set here.
func spawn(ctx context.Context, root string, environment []string, command ...string) (*process, error) {
	name := command[0]
	if strings.Contains(name, "/") {
		name = filepath.Join(root, name)
	}
	p := &process{command: exec.CommandContext(ctx, name, command[1:]...), lines: make(chan []byte), silent: make(chan struct{}), ended: make(chan struct{})}
	p.command.Dir = root
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "TASKER_") && !strings.HasPrefix(variable, "PG") {
			p.command.Env = append(p.command.Env, variable)
		}
	}
	p.command.Env = append(p.command.Env, environment...)
	// A peer's program ends with its input, too.
	p.command.SysProcAttr = apart()
	p.command.Cancel = func() error { return p.command.Process.Signal(syscall.SIGTERM) }
	p.command.WaitDelay = stopTimeout
	words, err := p.command.StderrPipe()
	if err != nil {
		return nil, err
	}
	if p.in, err = p.command.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	started := make(chan error)
	go func() {
		// The child dies with the thread that made it, where it dies with its parent at all.
		runtime.LockOSThread()
		started <- p.command.Start()
		<-p.ended
	}()
	if err := <-started; err != nil {
		close(p.ended)
		return nil, err
	}
	go func() {
		defer close(p.silent)
		_, _ = io.Copy(&p.said, words) // it ends as the program does
	}()
	go func() {
		defer close(p.lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			p.lines <- bytes.Clone(scanner.Bytes())
		}
	}()
	return p, nil
}

func (p *process) pid() int { return p.command.Process.Pid }

// line is the next one of its output.
func (p *process) line(ctx context.Context) ([]byte, error) {
	timer := time.NewTimer(answerTimeout)
	defer timer.Stop()
	select {
	case line, ok := <-p.lines:
		if !ok {
			// Its last words may be on their way still.
			select {
			case <-p.silent:
			case <-timer.C:
			}
			return nil, fmt.Errorf("the program ended; its last words:\n%s", p.said.text())
		}
		return line, nil
	case <-timer.C:
		return nil, fmt.Errorf("the program said nothing for %s; its last words:\n%s", answerTimeout, p.said.text())
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// answer gives a command, or none where it speaks first, and reads the answer.
func (p *process) answer(ctx context.Context, command string, into any) error {
	if command != "" {
		if _, err := io.WriteString(p.in, command+"\n"); err != nil {
			return fmt.Errorf("%w; its last words:\n%s", err, p.said.text())
		}
	}
	line, err := p.line(ctx)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(line, into); err != nil {
		return fmt.Errorf("the program said %q: %w", line, err)
	}
	return nil
}

// stop ends it: a peer's program by the end of its input, a server by the signal that its operator would send.
func (p *process) stop() error {
	_ = p.in.Close() // it may have ended before
	if strings.Contains(strings.Join(p.command.Args, " "), " serve ") {
		_ = p.command.Process.Signal(syscall.SIGTERM)
	}
	timer := time.AfterFunc(stopTimeout, func() { _ = p.command.Process.Kill() })
	defer timer.Stop()
	// What it still says is of no interest, but it must not wait for a reader.
	for range p.lines {
	}
	select {
	case <-p.silent: // Wait closes what is read here
	case <-time.After(stopTimeout):
	}
	err := p.command.Wait()
	close(p.ended)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("%s ended with %w; its last words:\n%s", filepath.Base(p.command.Path), err, p.said.text())
	}
	return err
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
	return strings.TrimSpace(string(t.last))
}
