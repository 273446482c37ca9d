"""Select what a continuously trained model trains on."""
