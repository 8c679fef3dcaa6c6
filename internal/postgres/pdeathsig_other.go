//go:build unix && !linux

package postgres

import "syscall"

const kernelGuards = false

func setParentDeathSignal(*syscall.SysProcAttr, syscall.Signal) {}
