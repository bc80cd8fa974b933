"""The Hugging Face hub: addresses of repositories, their files here, and exports pushed there."""
