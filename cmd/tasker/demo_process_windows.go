package main

import "syscall"

// dieWithParent asks for nothing: there is no such thing here.
func dieWithParent() *syscall.SysProcAttr { return nil }
