package bench

import "syscall"

// apart puts a child into a process group of its own: a terminal's Ctrl-C reaches us, and we stop it in order. The kernel kills
// a child whose parent is gone without a word.
func apart() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
