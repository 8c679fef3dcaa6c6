//go:build !linux

package peers

import "syscall"

// apart is what the kernel can be told of a child, which is nothing that all systems know.
func apart() *syscall.SysProcAttr { return nil }
