//go:build unix && !linux

package main

import "syscall"

// dieWithUs can do nothing here: a command outlives a worker that is killed.
func dieWithUs(*syscall.SysProcAttr) {}
