//go:build unix

package postgres

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
)

// account is the system user that the postmaster runs as: ourselves, or for root, as whom Postgres refuses to run,
// somebody else.
type account struct {
	uid, gid int
	// other is set when that is not the user of this process.
	other bool
}

// accountFor chooses the user for a cluster directory, which need not exist yet. A cluster that exists is run by its owner.
func accountFor(pgdata string) (account, error) {
	self := account{uid: os.Geteuid(), gid: os.Getegid()}
	info, err := os.Stat(pgdata)
	if err != nil && !os.IsNotExist(err) {
		return account{}, fmt.Errorf("looking at the cluster: %w", err)
	}
	owner := -1
	if err == nil {
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			owner = int(stat.Uid)
		}
	}
	if self.uid != 0 {
		if owner >= 0 && owner != self.uid {
			return account{}, fmt.Errorf("%s belongs to user %s: run as that user, or choose another data directory", pgdata, userName(owner))
		}
		return self, nil
	}
	if owner > 0 {
		return account{uid: owner, gid: int(info.Sys().(*syscall.Stat_t).Gid), other: true}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		found, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.Atoi(found.Uid)
		gid, gidErr := strconv.Atoi(found.Gid)
		if uidErr == nil && gidErr == nil && uid > 0 {
			return account{uid: uid, gid: gid, other: true}, nil
		}
	}
	// A container image without a passwd file. The number is nobody's everywhere.
	return account{uid: 65534, gid: 65534, other: true}, nil
}

func userName(uid int) string {
	if found, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return found.Username
	}
	return strconv.Itoa(uid)
}

// credential makes a child process run as the account.
func (a account) credential() *syscall.Credential {
	if !a.other {
		return nil
	}
	return &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)} //nolint:gosec // ids of an account that exists
}

// own gives the one file or directory to the account.
func (a account) own(path string) error {
	if !a.other {
		return nil
	}
	return os.Lchown(path, a.uid, a.gid)
}

// reaches says whether the account may enter every directory on the way to path. It reads mode bits and nothing finer.
func (a account) reaches(path string) bool {
	if !a.other {
		return true
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return false
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return false
		}
		enter := os.FileMode(0o001)
		switch {
		case int(stat.Uid) == a.uid:
			enter = 0o100
		case int(stat.Gid) == a.gid:
			enter = 0o010
		}
		if info.Mode().Perm()&enter == 0 {
			return false
		}
		if dir == filepath.Dir(dir) {
			return true
		}
	}
}

// clusterDir is how a child process names the cluster directory on its command line.
//
// Root's directories are often closed to others (/root, mktemp -d), so that the account that runs Postgres cannot walk to
// a cluster it owns. Opening their ancestors is not ours to do. Instead the child inherits the open directory and reaches
// it through /proc, which asks for no permission on the way: Postgres changes into its data directory at once and uses
// relative names from there.
type clusterDir struct {
	path string
	open *os.File // nil when path can be walked to
}

// inheritedDirFD is the descriptor of an inherited cluster directory: ExtraFiles begin at 3, and the lock comes first.
const inheritedDirFD = 4

func openClusterDir(path string, as account) (clusterDir, error) {
	if as.reaches(path) {
		return clusterDir{path: path}, nil
	}
	if runtime.GOOS != "linux" {
		return clusterDir{}, fmt.Errorf("user %s, who must run Postgres in root's place, cannot enter %s: choose a data directory whose parents are open to others", userName(as.uid), path)
	}
	dir, err := os.Open(path)
	if err != nil {
		return clusterDir{}, fmt.Errorf("opening the cluster: %w", err)
	}
	return clusterDir{path: path, open: dir}, nil
}

// arg is the value of -D.
func (d clusterDir) arg() string {
	if d.open == nil {
		return d.path
	}
	return "/proc/self/fd/" + strconv.Itoa(inheritedDirFD)
}

// inherit is what the child's ExtraFiles must be, given the lock that it holds.
func (d clusterDir) inherit(lock *os.File) []*os.File {
	if d.open == nil {
		return []*os.File{lock}
	}
	return []*os.File{lock, d.open}
}

func (d clusterDir) close() {
	if d.open != nil {
		_ = d.open.Close()
	}
}
