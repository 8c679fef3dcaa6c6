//go:build unix

package postgres

import (
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"syscall"
)

// guardian is a small process that outlives ours just long enough to do what the kernel does not: signal the postmaster
// where there is no parent-death signal, and remove an ephemeral data directory.
//
// It waits on a pipe that only this process can write to. End of file means that this process is gone, however it went.
type guardian struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
}

// guardScript: $1 the signal, $2 the postmaster.pid, then the directories to remove. Postgres removes its pid file as the
// last thing it does, and a killed one leaves it; hence both conditions.
const guardScript = `
trap '' INT HUP TERM QUIT
read -r word
[ "$word" = done ] && exit 0
signal=$1 pidfile=$2
shift 2
if read -r pid rest <"$pidfile"; then
  kill -s "$signal" "$pid"
  tries=0
  while [ -e "$pidfile" ] && kill -0 "$pid" && [ $tries -lt 600 ]; do
    sleep 0.1
    tries=$((tries + 1))
  done
fi
for dir in "$@"; do rm -rf "$dir"; done
`

func startGuardian(signal, dataDir string, remove []string) (*guardian, error) {
	args := append([]string{"-c", guardScript, "tasker-guardian", signal, filepath.Join(dataDir, clusterName, "postmaster.pid")}, remove...)
	cmd := exec.Command("/bin/sh", args...)
	cmd.Env = environment()
	cmd.Dir = "/"
	// Its own group: a kill of our whole group must not take it along.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("starting the guardian: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the guardian: %w", err)
	}
	return &guardian{cmd: cmd, stdin: stdin}, nil
}

// dismiss sends the guardian home: there is nothing left to guard.
func (g *guardian) dismiss() error {
	if g == nil {
		return nil
	}
	// It may be gone already, killed by somebody; then there is nothing to tell it.
	_, _ = io.WriteString(g.stdin, "done\n")
	_ = g.stdin.Close()
	if err := g.cmd.Wait(); err != nil {
		return fmt.Errorf("guardian: %w", err)
	}
	return nil
}
