//go:build !linux

package main

import "syscall"

// dieWithParent asks for nothing: only the kernel of Linux can do it.
func dieWithParent() *syscall.SysProcAttr { return nil }
