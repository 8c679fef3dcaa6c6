//go:build !linux

package chaos_test

import "syscall"

func dieWithUs() *syscall.SysProcAttr { return nil }
