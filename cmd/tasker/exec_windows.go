package main

import (
	"os/exec"
	"syscall"
)

const (
	terminate = syscall.SIGTERM
	kill      = syscall.SIGKILL
)

// ownGroup is for systems with process groups.
func ownGroup(*exec.Cmd) {}

// signalGroup ends the command alone: there is no other signal here, and no group.
func signalGroup(cmd *exec.Cmd, _ syscall.Signal) { _ = cmd.Process.Kill() }

// signalCode is the error_code of a command that was ended from outside.
func signalCode(*exec.ExitError) string { return "KILLED" }
