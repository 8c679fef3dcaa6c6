//go:build unix

package main

import (
	"fmt"
	"os/exec"
	"syscall"
)

const (
	terminate = syscall.SIGTERM
	kill      = syscall.SIGKILL
)

// ownGroup puts a command at the head of a process group, so that a terminal's Ctrl-C does not reach it and a signal reaches
// all that it started.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	dieWithUs(cmd.SysProcAttr)
}

// signalGroup signals a command and all that it started. A group that has ended already is none.
func signalGroup(cmd *exec.Cmd, signal syscall.Signal) {
	_ = syscall.Kill(-cmd.Process.Pid, signal)
}

// signalCode is the error_code of a command that a signal ended.
func signalCode(exit *exec.ExitError) string {
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return fmt.Sprintf("SIGNAL_%d", status.Signal())
	}
	return "RUN_FAILED"
}
