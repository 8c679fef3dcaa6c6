//go:build unix

package main

import "syscall"

// dieWithParent has the kernel kill a child when the thread that started it ends, where the kernel can.
func dieWithParent() *syscall.SysProcAttr {
	attributes := &syscall.SysProcAttr{}
	dieWithUs(attributes)
	return attributes
}
