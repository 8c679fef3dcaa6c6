package main

import (
	"strings"
	"syscall"
	"testing"

	"github.com/taskerhq/tasker/server"
)

func TestServeShowsTheReference(t *testing.T) {
	stdout, stderr, code := (&person{t: t}).try("serve", "--help")
	if code != 0 || stderr != "" || !strings.HasSuffix(stdout, server.Help()) {
		t.Errorf("exit status %d: %s%s", code, stdout, stderr)
	}
}

func TestServeRefusesWhatItCannotBe(t *testing.T) {
	for words, args := range map[string][]string{
		"--shard must be":    {"serve", "--shard", "512"},
		"unknown flag":       {"serve", "--frobnicate"},
		"invalid argument":   {"serve", "--retention", "soon"},
		"unknown command":    {"serve", "now"},
		"--tls-key must be ": {"serve", "--tls-cert", "x"},
	} {
		if _, stderr, code := (&person{t: t}).try(args...); code == 0 || !strings.Contains(stderr, words) {
			t.Errorf("tasker %s: exit status %d: %s", strings.Join(args, " "), code, stderr)
		}
	}
	p := &person{t: t, env: map[string]string{"TASKER_MAX_STREAMS": "many"}}
	if _, stderr, code := p.try("serve"); code != exitUsage || !strings.Contains(stderr, "$TASKER_MAX_STREAMS") {
		t.Errorf("exit status %d: %s", code, stderr)
	}
}

func TestHealthOfAServer(t *testing.T) {
	p := newPerson(t)
	for _, args := range [][]string{{"health"}, {"health", "--live"}, {"health", "--address", shared.address}} {
		if got := p.ok(args...); got != "SERVING\n" {
			t.Errorf("tasker %s: %q", strings.Join(args, " "), got)
		}
	}
	// In a container, what the server was told is all there is to go by.
	_, port, _ := strings.Cut(shared.address, ":")
	for _, listen := range []string{shared.address, ":" + port, "0.0.0.0:" + port} {
		inside := &person{t: t, env: map[string]string{"TASKER_LISTEN": listen}}
		if got := inside.ok("health"); got != "SERVING\n" {
			t.Errorf("beside a server on %s: %q", listen, got)
		}
	}
	nobody := &person{t: t, env: map[string]string{"TASKER_ADDRESS": "127.0.0.1:1"}}
	nobody.refused("asking 127.0.0.1:1", "health", "--timeout", "300ms")
}

func TestMigrateTheServersOwnDatabase(t *testing.T) {
	p := newPerson(t)
	if got := p.ok("migrate", "status", "--data-dir", shared.dataDir); !strings.Contains(got, "up to date") {
		t.Errorf("status: %q", got)
	}
	if got := p.ok("migrate", "up", "--data-dir", shared.dataDir); !strings.Contains(got, "up to date") {
		t.Errorf("up: %q", got)
	}
}

func TestVersionIsTold(t *testing.T) {
	if got := (&person{t: t}).ok("version"); !strings.HasPrefix(got, "tasker "+version+" ") {
		t.Errorf("it says %q", got)
	}
}

// The first signal stops the server in order, and its exit status says so.
func TestASignalStopsAServer(t *testing.T) {
	s, err := startServer(t.TempDir(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.end(syscall.SIGTERM); err != nil {
		t.Errorf("it ended with %v: %s", err, s.stderr)
	}
	if said := s.stderr.String(); !strings.Contains(said, "msg=stopped") {
		t.Errorf("it said %s", said)
	}
}
