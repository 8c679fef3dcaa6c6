//go:build unix && !linux

package postgres

import "syscall"

var kernelGuards = false

func setParentDeathSignal(*syscall.SysProcAttr, syscall.Signal) {}
