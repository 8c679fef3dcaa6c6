package server

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// transport is how connections are made safe: by TLS where a certificate is given. Without one, only this machine may
// connect, unless the operator says otherwise.
func transport(c *Config, addr net.Addr) (credentials.TransportCredentials, error) {
	if c.TLSCert == "" {
		if tcp, ok := addr.(*net.TCPAddr); ok && !tcp.IP.IsLoopback() && !c.Insecure {
			return nil, fmt.Errorf("other machines can reach %s: give --tls-cert and --tls-key, or say --insecure", addr)
		}
		return insecure.NewCredentials(), nil
	}
	pair := &keyPair{cert: c.TLSCert, key: c.TLSKey}
	if _, err := pair.get(nil); err != nil {
		return nil, err
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: pair.get}
	if c.ClientCA != "" {
		pem, err := os.ReadFile(c.ClientCA)
		if err != nil {
			return nil, fmt.Errorf("reading --tls-client-ca: %w", err)
		}
		conf.ClientCAs, conf.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		if !conf.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("--tls-client-ca holds no certificate")
		}
	}
	return credentials.NewTLS(conf), nil
}

// keyPair is a certificate with its key, read again when the certificate's file has changed.
type keyPair struct {
	cert, key string

	mu      sync.Mutex
	pair    *tls.Certificate
	changed time.Time
}

// get is for tls.Config. When the new files cannot be read, which also happens between the writing of the two, the
// certificate at hand goes on.
func (k *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	info, err := os.Stat(k.cert)
	if err == nil && k.pair != nil && info.ModTime().Equal(k.changed) {
		return k.pair, nil
	}
	if err == nil {
		var pair tls.Certificate
		if pair, err = tls.LoadX509KeyPair(k.cert, k.key); err == nil {
			k.pair, k.changed = &pair, info.ModTime()
		}
	}
	if k.pair == nil {
		return nil, fmt.Errorf("reading --tls-cert and --tls-key: %w", err)
	}
	return k.pair, nil
}
