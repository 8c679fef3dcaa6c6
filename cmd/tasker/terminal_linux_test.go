package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openTerminal makes a terminal and returns what a program sees of it and what a person sees.
func openTerminal(t *testing.T) (program, screen *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = screen.Close() })
	if err := unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = program.Close() })
	return program, screen
}

func TestColoursAreForTerminals(t *testing.T) {
	p := newPerson(t)
	p.work("true", "--handler", "one")
	id := strings.TrimSpace(p.ok("submit", "-f", p.file("one.yaml", "steps: [{name: one}]\n")))
	if lines := p.ok("task", "watch", id); strings.Contains(lines, "\x1b") {
		t.Errorf("an escape sequence where there is no terminal: %q", lines)
	}
	for _, c := range []struct {
		env      map[string]string
		coloured bool
	}{
		{nil, true},
		{map[string]string{"NO_COLOR": "1"}, false},
		{map[string]string{"TERM": "dumb"}, false},
	} {
		program, screen := openTerminal(t)
		seen := make(chan string)
		go func() {
			var all strings.Builder
			buffer := make([]byte, 4096)
			for {
				n, err := screen.Read(buffer)
				all.Write(buffer[:n])
				if err != nil || strings.Contains(all.String(), "the end") {
					seen <- all.String()
					return
				}
			}
		}()
		env := func(name string) string {
			if value, ok := c.env[name]; ok {
				return value
			}
			return p.getenv(name)
		}
		if code := run(t.Context(), []string{"steps", id, "--watch"}, env, strings.NewReader(""), program, program); code != 0 {
			t.Errorf("%v: exit status %d", c.env, code)
		}
		if _, err := program.WriteString("the end"); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-seen:
			if strings.Contains(got, "\x1b[32mcomplete") != c.coloured || !strings.Contains(got, "1 of 1 steps complete") {
				t.Errorf("%v: the terminal shows %q", c.env, got)
			}
		case <-time.After(patience):
			t.Fatal("the terminal shows nothing")
		}
	}
}
